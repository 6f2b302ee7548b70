MelScale = None
