"""y[b,i,:] = sum_k C (K[k,:] * (B x[b,i-k,:])), in the cheapest order of contractions."""
