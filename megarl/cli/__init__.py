"""The command line: `megarl pretrain | sft | reward | train | eval | ...`."""
