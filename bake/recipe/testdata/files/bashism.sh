#!/bin/sh
arr=(1 2)
