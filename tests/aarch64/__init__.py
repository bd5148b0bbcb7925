"""The digests of outputs and formats on an emulated aarch64 machine, against those of this one."""
