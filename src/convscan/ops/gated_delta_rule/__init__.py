"""S[t] = (I - beta[t] k[t] k[t]^T) diag(exp(g[t])) S[t-1] + beta[t] k[t] v[t]^T, y[t] = scale S[t]^T q[t]."""
