ModelLoader = ImageModelDescriptor = None
