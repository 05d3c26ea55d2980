"""The dashboard in a real browser, on a real stack: what a person does, and what they see."""
