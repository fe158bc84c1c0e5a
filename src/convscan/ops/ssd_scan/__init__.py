"""S[t] = exp(dt[t] A) S[t-1] + dt[t] x[t] B[t]^T, y[t] = S[t] C[t] + D x[t]."""
