"""Scripts for those who work on the pack; they do not travel to those who use it."""
