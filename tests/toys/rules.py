"""How the toy model's official weights, of a made-up PyTorch code, become ours."""
