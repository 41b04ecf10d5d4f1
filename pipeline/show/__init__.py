"""What people look at: pages, plots, tables in the terminal."""
