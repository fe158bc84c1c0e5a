"""y = T X, T[i,j] = column[i-j] for i >= j and row[j-i] for j > i."""
