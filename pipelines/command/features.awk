# Adds two columns before the label: heat above the room's 20 °C, and shaking at this speed.
BEGIN { FS = OFS = "," }
NR == 1 { print $1, $2, $3, $4, "heat", "shake", $5; next }
{ print $1, $2, $3, $4, $2 - 20, sprintf("%.4f", $3 * $4 / 1000), $5 }
