"""What no test of a second finds: kills at random moments, odd files, long lists of runs."""
