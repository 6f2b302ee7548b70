"""Stand-ins for two of torchvision's own operators, which its import looks for: the tests' torch has no build of them.

A .pth file imports this at the start of every Python, and torch takes seconds: so they come when torchvision does.
"""

import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            Finder.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, Finder())
