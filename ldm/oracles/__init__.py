"""What a corpus can say of a picture: how much of a caption it shows."""
