"""The service next to the devices: answers by itself when it can be trusted, else asks the cloud."""
