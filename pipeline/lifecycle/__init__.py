"""The use cases of a job: accept it, submit it, hear how it went, ask, and look for what was lost."""
