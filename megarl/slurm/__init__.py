"""`megarl submit`: batch jobs, one per stage, that save and requeue themselves."""
