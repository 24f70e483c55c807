"""The boiler: starts, supervises and stops every process of LocalProcfile inside one dyno."""
