"""Studies: what runs several trainers and explains the difference."""
