package main

// trapLibrary is empty until userdata/trap has one.
const trapLibrary = ""
