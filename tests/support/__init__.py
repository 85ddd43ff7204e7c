"""What several test files share: tiny models and their folders, recipes, images, measures; and no tests."""
