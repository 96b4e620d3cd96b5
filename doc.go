// Package lecafe holds nothing but the tests of rules for the whole module.
// See README.md for the programs and ARCHITECTURE.md for the packages.
package lecafe
