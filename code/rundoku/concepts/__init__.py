"""One room for each concept; a concept imports and introduces nothing."""
