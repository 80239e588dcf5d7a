"""What turns the notebooks into a site and keeps them honest."""
