"""What a notebook shows: a run to play with, a figure with menus, and checks of what its text claims."""
