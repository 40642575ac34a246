"""The page that runs an exported SpotViT in a browser: its files, and the local server that shows them."""
