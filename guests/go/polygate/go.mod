module polygate

go 1.24
