"""The command line: `megarl train | pretrain | eval | doctor | bench`."""
