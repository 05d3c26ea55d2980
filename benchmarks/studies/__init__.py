"""Questions asked once, and to be asked again after a change that may matter: each a script of its own."""
