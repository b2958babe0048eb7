"""`megarl pipeline`: stages in order, each started from what the ones before it have made."""
