def main_and_exit(): pass
