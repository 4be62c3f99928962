"""Many scenes with one model: `fastvggt batch`. `scenes` says which, `journal` which are done, `work` is the
loop of one process and `ray_workers` several of them.
"""
