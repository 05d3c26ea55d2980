"""
What is measured, against the floor of the machine and against what a user would pick instead: `pipeline bench`.

`harness` runs a case, `cases/` has one page a case, `costs` reads what a running stack uses, `targets` what is asked.
"""
