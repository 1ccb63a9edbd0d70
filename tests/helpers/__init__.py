"""What several test files share, by topic."""
