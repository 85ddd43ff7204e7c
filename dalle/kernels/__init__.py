"""Operations that have fast implementations beside plain PyTorch: attention, linear maps, losses, convolutions."""
