package diag

// Catalogue explains every check, sorted by ID. `heddle help ID` and the reference print it.
var Catalogue = []Check{}
