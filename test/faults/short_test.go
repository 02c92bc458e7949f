//go:build !fault

package faults

// full says that every row runs, and at full size.
const full = false
