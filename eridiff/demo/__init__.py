"""The embedded default: synthetic captioned images and three tiny bases to train on."""
