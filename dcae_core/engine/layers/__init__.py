"""The layers of the network as they run, a file each."""
