"""Device seam, the CPU stand-in for torch.cuda, bring-up, failure watch and tear-down."""
