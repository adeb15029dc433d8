"""Small layers that the networks share; they take plain keywords and know nothing of configs."""
