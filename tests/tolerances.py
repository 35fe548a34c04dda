"""The only table of kernel tolerances: how far a float32 kernel may lie from the float64 reference, as |out - ref| / |ref|.

Float32 arithmetic on sums of a few hundred terms lands near 1e-6; a wrong weight, sign or index lands near 1. The bounds leave
room for another order of summation (atomics) and for fine hash levels: the fraction x * 2048 - floor loses 11 of 24 bits.
"""

GRADIENT = 2e-5  # forward and first derivatives of volume rendering and blend skinning
JACOBIAN = 1e-4  # where the derivative of the skinning weights enters: differences of nearly equal terms; and of the logistics of a NeuS opacity, which differ by little
HASH = 2e-4  # features, Jacobians and their gradients, which multiply that lost fraction by the resolution
HALF_TABLE = 2e-3  # a float16 table with float32 sums, against the float64 encoding of the float32 table
INVERSE = 1e-4  # gradients at the point where Newton stopped, which is known to its residual only

BORDER_CELLS = 1e-3  # a point nearer than this to a cell's border may fall to either side; in cells
