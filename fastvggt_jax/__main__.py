from fastvggt_jax.cli.app import main

main()
