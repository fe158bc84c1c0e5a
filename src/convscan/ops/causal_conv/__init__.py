"""y[i,n] = sum_j h[i-j,n] x[j,n]."""

from . import backward as backward
