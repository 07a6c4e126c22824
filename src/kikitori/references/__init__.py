"""References to models elsewhere: hub:owner/name@revision and wandb:entity/project/artifact:alias."""
