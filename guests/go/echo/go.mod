module echo

go 1.24

require polygate v0.0.0

replace polygate => ../polygate
