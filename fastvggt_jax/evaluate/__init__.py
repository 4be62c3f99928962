"""How good a reconstruction is: the field's metrics, and models measured by them on rendered scenes and on a
real stereo pair.
"""
