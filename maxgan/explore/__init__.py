"""What a generator's latent space holds, as pictures: classes, paths, nearest real images, inversion."""
