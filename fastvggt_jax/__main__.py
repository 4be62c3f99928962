from fastvggt_jax.cli import main

main()
