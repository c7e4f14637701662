"""Drawings of results: token maps, comparisons, times. One palette and one way to draw text for all of them."""
