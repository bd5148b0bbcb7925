"""Version 1 of the control API: generated from the .proto files beside this one by ``make proto``."""
